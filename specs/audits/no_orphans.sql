-- Every completion has its prompt, and every judgement and step its completion, in the same dataset.
SELECT 'completion' AS kind, c.dataset, c.id FROM completions c
WHERE NOT EXISTS (FROM prompts p WHERE p.id = c.prompt_id AND p.dataset = c.dataset)
UNION ALL SELECT 'judgement', j.dataset, j.id FROM judgements j
WHERE NOT EXISTS (FROM completions c WHERE c.id = j.completion_id AND c.dataset = j.dataset)
UNION ALL SELECT 'step', s.dataset, s.id FROM steps s
WHERE NOT EXISTS (FROM completions c WHERE c.id = s.completion_id AND c.dataset = s.dataset)
