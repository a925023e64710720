-- The two sides of a preference judgement differ in their text.
SELECT j.dataset, j.id AS judgement_id, a."text" FROM judgements j
JOIN completions a ON a.id = j.completion_id AND a.dataset = j.dataset
JOIN completions b ON b.id = j.other_id AND b.dataset = j.dataset
WHERE trim(a."text") = trim(b."text") AND j.verdict IN ('win', 'lose')
