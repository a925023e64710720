-- Chosen answers are not longer than rejected ones by more than the parameter allows (a ratio of mean characters).
-- param most = 2.0
SELECT dataset, avg(length(chosen)) AS chosen_characters, avg(length(rejected)) AS rejected_characters,
       chosen_characters / rejected_characters AS ratio, count(*) AS pairs
FROM pairs GROUP BY dataset HAVING ratio > $most AND count(*) >= 20
