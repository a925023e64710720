-- No two kept prompts of a dataset are the same but for case and spaces.
SELECT dataset, lower(regexp_replace(trim(prompt), '\s+', ' ', 'g')) AS "text", count(*) AS copies,
       list(prompt_id)[:3] AS prompt_ids
FROM kept_prompts GROUP BY ALL HAVING count(*) > 1
