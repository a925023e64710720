-- No kept prompt of a training dataset stands in a held-out one (both named by LIKE patterns).
-- param heldout = heldout%
-- param train = %
SELECT t.dataset, h.dataset AS heldout, t.prompt_id, t.prompt
FROM kept_prompts t JOIN kept_prompts h
  ON lower(regexp_replace(trim(t.prompt), '\s+', ' ', 'g')) = lower(regexp_replace(trim(h.prompt), '\s+', ' ', 'g'))
WHERE h.dataset LIKE $heldout AND t.dataset LIKE $train AND t.dataset NOT LIKE $heldout
