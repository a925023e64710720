-- A record's newest verdict by each filter.
CREATE OR REPLACE VIEW latest_verdicts AS
SELECT record_id, dataset, filter, last(keep ORDER BY created_at, rowid) AS keep,
       last(reason ORDER BY created_at, rowid) AS reason, last(score ORDER BY created_at, rowid) AS score,
       last(threshold ORDER BY created_at, rowid) AS threshold,
       last(evidence_id ORDER BY created_at, rowid) AS evidence_id,
       last(evidence ORDER BY created_at, rowid) AS evidence, last("text" ORDER BY created_at, rowid) AS "text"
FROM verdicts GROUP BY record_id, dataset, filter;

-- The records that some filter dropped.
CREATE OR REPLACE VIEW dropped AS
SELECT record_id, dataset
FROM (SELECT record_id, dataset, filter, arg_max(keep, created_at) AS keep FROM verdicts
      GROUP BY record_id, dataset, filter)
WHERE NOT keep;

CREATE OR REPLACE VIEW kept_prompts AS
SELECT p.dataset, p.id AS prompt_id, p.messages, p.messages[-1].content AS prompt, p.language, p.generator, p.parents,
       p.meta, p.created_at
FROM prompts p ANTI JOIN dropped d ON d.record_id = p.id AND d.dataset = p.dataset;

CREATE OR REPLACE VIEW kept_completions AS
SELECT c.* FROM completions c ANTI JOIN dropped d ON d.record_id = c.id AND d.dataset = c.dataset;

-- The kept completions, and those that were only set aside for a better one: no row to learn from, but a fair rejected side.
CREATE OR REPLACE VIEW fair_completions AS
SELECT c.* FROM completions c
ANTI JOIN (SELECT record_id, dataset FROM latest_verdicts
           WHERE NOT keep AND reason NOT IN ('not_best', 'not_accepted', 'improved', 'revised')) d
  ON d.record_id = c.id AND d.dataset = c.dataset;

-- Supervised rows: a kept answer to a prompt that no filter dropped. A dataset of answers may lean on the prompts of
-- another; then that dataset's verdicts on the prompt count.
CREATE OR REPLACE VIEW sft AS
SELECT c.dataset, c.prompt_id, c.id AS completion_id, p.messages, p.prompt, c."text" AS completion, p.language,
       c.model, c.finish_reason, c.tokens, p.meta, p.prompt_dataset
FROM kept_completions c
JOIN (SELECT * EXCLUDE (dataset), dataset AS prompt_dataset FROM kept_prompts
      QUALIFY row_number() OVER (PARTITION BY prompt_id, dataset ORDER BY created_at) = 1) p
  ON p.prompt_id = c.prompt_id
 AND p.prompt_dataset = (SELECT coalesce(max(q.dataset) FILTER (q.dataset = c.dataset), min(q.dataset))
                         FROM prompts q WHERE q.id = c.prompt_id);

-- The scores that say how good a record is. A measure (IFD, complexity) is a number too, but no opinion.
CREATE OR REPLACE VIEW opinions AS
SELECT * FROM judgements WHERE other_id = '' AND score IS NOT NULL AND judge_kind <> 'measure';

-- Preference pairs from pairwise opinions. A judge that was asked in both orders, or several times, has one voice: it
-- counts for a side only where all orders that it was shown agree, and for none where one could not be read; a judge that
-- was never read has no voice. `weight` is the share of all voices that the chosen side won. `margin` is the mean difference
-- of the two sides' scores on one scale that both have, for a reward and a score from 1 to 5 have no common mean: that of a
-- judge who also compared them, else the newest.
CREATE OR REPLACE VIEW decided_pairs AS
WITH orders AS (
    SELECT dataset, prompt_id, least(completion_id, other_id) AS a, greatest(completion_id, other_id) AS b,
           judge, rubric, aspect, shown_first, count(*) FILTER (verdict <> 'invalid') AS readable,
           sign(count(*) FILTER ((verdict = 'win' AND completion_id < other_id)
                              OR (verdict = 'lose' AND completion_id > other_id))
              - count(*) FILTER ((verdict = 'win' AND completion_id > other_id)
                              OR (verdict = 'lose' AND completion_id < other_id))) AS lean
    FROM judgements WHERE other_id <> '' AND verdict IS NOT NULL GROUP BY ALL
), voices AS (
    SELECT dataset, prompt_id, a, b, judge, if(min(lean) = max(lean), min(lean), 0) AS lean
    FROM orders GROUP BY dataset, prompt_id, a, b, judge, rubric, aspect HAVING sum(readable) > 0
), votes AS (
    SELECT dataset, prompt_id, a, b, count(*) FILTER (lean = 1) AS for_a, count(*) FILTER (lean = -1) AS for_b,
           count(*) FILTER (lean = 0) AS ties, list(DISTINCT judge) AS judges
    FROM voices GROUP BY ALL
)
SELECT *, if(for_a > for_b, a, b) AS chosen_id, if(for_a > for_b, b, a) AS rejected_id,
       md5(concat_ws('|', 'pair', chosen_id, rejected_id)) AS pair_id
FROM votes WHERE for_a <> for_b;

CREATE OR REPLACE VIEW all_pairs AS
WITH scores AS (
    SELECT completion_id, rubric, judge_kind, if(judge_kind IN ('model', 'human'), '', judge) AS scale,
           avg(score) AS score, list(DISTINCT judge) AS judges, max(created_at) AS since FROM opinions GROUP BY ALL
), sides AS (
    SELECT dataset, pair_id, judges, unnest([chosen_id, rejected_id]) AS completion_id, unnest([1, -1]) AS side
    FROM decided_pairs
), margins AS (
    SELECT p.dataset, p.pair_id, sum(p.side * s.score) AS margin
    FROM sides p JOIN scores s ON s.completion_id = p.completion_id
    GROUP BY p.dataset, p.pair_id, s.rubric, s.judge_kind, s.scale HAVING count(*) = 2
    QUALIFY row_number() OVER (PARTITION BY p.dataset, p.pair_id
        ORDER BY bool_or(list_has_any(p.judges, s.judges)) DESC, max(s.since) DESC, s.rubric, s.judge_kind, s.scale) = 1
)
SELECT d.dataset, d.prompt_id, d.pair_id, d.chosen_id, d.rejected_id, p.messages, p.messages[-1].content AS prompt,
       c."text" AS chosen, r."text" AS rejected, m.margin,
       greatest(for_a, for_b) / (for_a + for_b + ties)::DOUBLE AS weight, for_a + for_b + ties AS votes, p.language, p.meta
FROM decided_pairs d
JOIN completions c ON c.id = d.chosen_id AND c.dataset = d.dataset AND c.prompt_id = d.prompt_id
JOIN completions r ON r.id = d.rejected_id AND r.dataset = d.dataset AND r.prompt_id = d.prompt_id
JOIN (SELECT DISTINCT ON (id) * FROM prompts ORDER BY rowid) p ON p.id = d.prompt_id
LEFT JOIN margins m ON m.pair_id = d.pair_id AND m.dataset = d.dataset;

-- The pairs that are left: both sides, the prompt and the pair itself were kept.
CREATE OR REPLACE VIEW pairs AS
SELECT a.* FROM all_pairs a
SEMI JOIN kept_completions c ON c.id = a.chosen_id AND c.dataset = a.dataset
SEMI JOIN fair_completions r ON r.id = a.rejected_id AND r.dataset = a.dataset
ANTI JOIN dropped x ON x.record_id = a.prompt_id AND x.dataset = a.dataset
ANTI JOIN dropped y ON y.record_id = a.pair_id AND y.dataset = a.dataset
WHERE a.chosen <> a.rejected;

-- Every loss with its reason, its text and the text of the evidence.
CREATE OR REPLACE VIEW drops AS
SELECT v.dataset, v.filter, v.reason, v.record_id, v.score, v.threshold, v.evidence_id,
       coalesce(nullif(v."text", ''), c."text", p.messages[-1].content, x."text") AS "text",
       coalesce(nullif(v.evidence, ''), (SELECT any_value(e."text") FROM completions e WHERE e.id = v.evidence_id),
                (SELECT any_value(e.messages[-1].content) FROM prompts e WHERE e.id = v.evidence_id)) AS evidence
FROM latest_verdicts v
LEFT JOIN completions c ON c.id = v.record_id AND c.dataset = v.dataset
LEFT JOIN prompts p ON p.id = v.record_id AND p.dataset = v.dataset
LEFT JOIN decided_pairs d ON d.pair_id = v.record_id AND d.dataset = v.dataset
LEFT JOIN completions x ON x.id = d.chosen_id AND x.dataset = d.dataset
WHERE NOT v.keep;

-- All scored answers of a prompt, best first, with those that were set aside for a better one.
CREATE OR REPLACE VIEW rankings AS
SELECT c.dataset, c.prompt_id, any_value(p.messages) AS messages, any_value(p.messages)[-1].content AS prompt,
       list(c."text" ORDER BY s.score DESC, c.id) AS completions,
       list(s.score ORDER BY s.score DESC, c.id) AS scores, list(c.id ORDER BY s.score DESC, c.id) AS completion_ids
FROM fair_completions c
JOIN (SELECT completion_id, avg(score) AS score FROM opinions GROUP BY ALL) s
  ON s.completion_id = c.id
JOIN (SELECT DISTINCT ON (id) id, messages FROM prompts ORDER BY rowid) p ON p.id = c.prompt_id
ANTI JOIN dropped d ON d.record_id = c.prompt_id AND d.dataset = c.dataset
GROUP BY c.dataset, c.prompt_id HAVING count(*) > 1;

CREATE OR REPLACE VIEW step_labels AS
SELECT s.dataset, c.prompt_id, s.completion_id, any_value(p.messages) AS messages,
       any_value(p.messages)[-1].content AS prompt, list(s."text" ORDER BY s."index") AS steps,
       list(s.label ORDER BY s."index") AS labels, list(s.soft_label ORDER BY s."index") AS soft_labels
FROM steps s JOIN kept_completions c ON c.id = s.completion_id AND c.dataset = s.dataset
JOIN (SELECT DISTINCT ON (id) id, messages FROM prompts ORDER BY rowid) p ON p.id = c.prompt_id
GROUP BY s.dataset, c.prompt_id, s.completion_id;

-- The waterfall: what each generator reported of its own yield, and what each filter let through.
CREATE OR REPLACE VIEW yield AS
WITH filters AS (
    SELECT dataset, filter, min(created_at) AS since, count(DISTINCT record_id) AS screened
    FROM verdicts WHERE filter NOT IN (SELECT split_part(name, '/', 2) FROM metrics WHERE name LIKE 'yield/%')
    GROUP BY ALL HAVING bool_or(keep) OR bool_and("text" = '')
), measures AS (
    SELECT stage AS dataset, split_part(name, '/', 2) || coalesce(' from ' || (meta->>'from'), '') AS stage,
           split_part(name, '/', 3) AS measure,
           last(value ORDER BY created_at, rowid)::BIGINT AS n, min(created_at) AS since, min(step) AS place
    FROM metrics WHERE name LIKE 'yield/%' GROUP BY ALL
    UNION ALL SELECT dataset, filter, 'screened', screened, since, 1 FROM filters
    UNION ALL SELECT f.dataset, f.filter, 'kept', count(*) FILTER (v.keep), any_value(since), 2
    FROM filters f JOIN latest_verdicts v USING (dataset, filter) GROUP BY f.dataset, f.filter
)
SELECT dataset, stage, measure, n FROM measures ORDER BY since, dataset, stage, place;

-- Parent to child, of any kind: seed to prompt, prompt to completion, draft to rewrite, call to completion.
CREATE OR REPLACE VIEW lineage AS
SELECT unnest(parents) AS parent, id AS child, 'prompt' AS kind, dataset FROM prompts
UNION ALL SELECT prompt_id, id, 'completion', dataset FROM completions
UNION ALL SELECT unnest(parents), id, 'completion', dataset FROM completions
UNION ALL SELECT call_key, id, 'completion', dataset FROM completions WHERE call_key <> ''
UNION ALL SELECT completion_id, id, 'judgement', dataset FROM judgements
UNION ALL SELECT completion_id, id, 'step', dataset FROM steps;

-- The archive of an adversarial search: the newest elite of each cell, with the answer that it drew from the target.
CREATE OR REPLACE VIEW archive AS
WITH elites AS (
    SELECT stage AS dataset, meta->>'risk' AS risk, meta->>'style' AS style, (meta->>'heldout')::BOOLEAN AS heldout,
           value AS fitness, step AS wave, meta->>'prompt_id' AS prompt_id, meta->>'completion_id' AS completion_id
    FROM metrics WHERE name = 'archive/elite'
    QUALIFY row_number() OVER (PARTITION BY dataset, risk, style ORDER BY created_at DESC, rowid DESC) = 1
)
SELECT e.dataset, e.risk, e.style, e.heldout, e.fitness, e.wave, p.messages[-1].content AS prompt, c."text" AS answer,
       e.prompt_id, e.completion_id
FROM elites e JOIN prompts p ON p.id = e.prompt_id AND p.dataset = e.dataset
JOIN completions c ON c.id = e.completion_id AND c.dataset = e.dataset
ORDER BY e.dataset, e.risk, e.style;

CREATE OR REPLACE VIEW runs AS
SELECT run_id, any_value(spec) AS spec, any_value(spec_hash) AS spec_hash, any_value(versions) AS versions,
       min(created_at) AS started, max(created_at) FILTER (event <> 'started') AS finished,
       last(event ORDER BY created_at) AS status, last(detail ORDER BY created_at) AS detail
FROM run_events GROUP BY run_id;
