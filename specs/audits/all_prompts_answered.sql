-- In a dataset that holds answers, every kept prompt has one, or a verdict says why not.
SELECT p.dataset, p.prompt_id, p.prompt FROM kept_prompts p
WHERE p.dataset IN (SELECT DISTINCT dataset FROM completions)
  AND NOT EXISTS (FROM completions c WHERE c.prompt_id = p.prompt_id AND c.dataset = p.dataset)
  AND NOT EXISTS (FROM verdicts v WHERE v.evidence_id = p.prompt_id AND v.dataset = p.dataset AND NOT v.keep
                  AND v.reason = 'engine_error')
