-- Every generated answer leads to a journalled call that holds its text, or the reply that it was cut from.
SELECT c.dataset, c.id AS completion_id, c.call_key, c.engine, c."text" FROM completions c
WHERE c.engine NOT IN ('import', '') AND NOT EXISTS (
    FROM calls k WHERE k."key" = c.call_key AND k.error = '' AND contains(k.reply, c."text"))
