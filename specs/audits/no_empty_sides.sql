-- No kept answer is empty, and no side of a preference pair.
SELECT dataset, completion_id AS id, 'completion' AS side FROM sft WHERE trim(completion) = ''
UNION ALL SELECT dataset, chosen_id, 'chosen' FROM pairs WHERE trim(chosen) = ''
UNION ALL SELECT dataset, rejected_id, 'rejected' FROM pairs WHERE trim(rejected) = ''
