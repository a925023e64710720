-- Each way to align: what it learned from, what its training took, what it is worth, and how far it moved. Best-of-8,
-- RSO and PPO rest on the reward model, whose line says what that took.
WITH trained AS (
    SELECT stage AS model, last(value ORDER BY created_at, rowid) FILTER (name = 'train_samples') AS samples,
           last(value ORDER BY created_at, rowid) FILTER (name = 'train_runtime') AS seconds
    FROM metrics WHERE name IN ('train_samples', 'train_runtime') GROUP BY ALL
), examined AS (
    SELECT meta->>'model' AS model, stage, name, last(value ORDER BY created_at, rowid) AS value,
           stage IN ('heldout_greedy', 'heldout_best_of_8') AS once
    FROM metrics WHERE stage LIKE 'heldout%' AND (meta->>'model') IS NOT NULL
    GROUP BY ALL
), ways AS (
    SELECT model,
           any_value(value) FILTER (name = 'gold_reward') AS gold,
           any_value(value) FILTER (name = 'kl') AS kl,
           any_value(value) FILTER (name = 'exact_match') AS exact,
           any_value(value) FILTER (name = 'harmful_rate' AND once) AS harmful,
           any_value(value) FILTER (name = 'lookalikes_declined' AND once) AS over
    FROM examined GROUP BY ALL
)
SELECT model, samples::INT AS rows, round(seconds)::INT AS seconds, round(100 * gold, 1) AS gold_reward,
       round(kl, 2) AS kl, round(100 * exact, 1) AS exact_match, round(100 * harmful, 1) AS harmful_rate,
       round(100 * over, 1) AS lookalikes_declined
FROM ways FULL JOIN trained USING (model) ORDER BY gold NULLS FIRST;
