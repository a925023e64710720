-- Each run: where the gold reward of its batches (mean of five) was best and where it ended, and the held-out figures.
WITH course AS (
    SELECT stage AS model, step, avg(gold) OVER near AS gold, avg(proxy) OVER near AS proxy, avg(kl) OVER near AS kl
    FROM (PIVOT (FROM metrics WHERE name IN ('objective/gold', 'objective/scores', 'objective/kl') AND step > 0)
          ON name IN ('objective/gold' AS gold, 'objective/scores' AS proxy, 'objective/kl' AS kl)
          USING last(value) GROUP BY stage, step)
    WINDOW near AS (PARTITION BY stage ORDER BY step ROWS BETWEEN 4 PRECEDING AND CURRENT ROW)
    QUALIFY row_number() OVER (PARTITION BY stage ORDER BY step) >= 5
), runs AS (
    SELECT model, max(step) AS steps, arg_max(step, gold) AS peak_step, max(gold) AS gold_peak,
           arg_max(gold, step) AS gold_end, arg_max(proxy, gold) AS proxy_at_peak, arg_max(proxy, step) AS proxy_end,
           arg_max(kl, gold) AS kl_at_peak, arg_max(kl, step) AS kl_end
    FROM course GROUP BY ALL
), alarms AS (
    SELECT stage AS model, min(step) AS alarm_step FROM metrics WHERE name = 'guard/over_optimisation' GROUP BY ALL
), examined AS (
    SELECT meta->>'model' AS model,
           last(value ORDER BY created_at, rowid) FILTER (name = 'gold_reward') AS gold,
           last(value ORDER BY created_at, rowid) FILTER (name = 'kl') AS kl
    FROM metrics WHERE name IN ('gold_reward', 'kl') AND (meta->>'model') IS NOT NULL GROUP BY ALL
)
SELECT e.model, steps, peak_step, alarm_step,
       round(100 * gold_peak, 1) AS gold_peak, round(100 * gold_end, 1) AS gold_end,
       round(proxy_at_peak, 2) AS proxy_at_peak, round(proxy_end, 2) AS proxy_end, round(kl_at_peak, 2) AS kl_at_peak,
       round(kl_end, 2) AS kl_end, round(100 * e.gold, 1) AS heldout_gold, round(e.kl, 2) AS heldout_kl
FROM examined e LEFT JOIN runs USING (model) LEFT JOIN alarms USING (model) ORDER BY e.model;
