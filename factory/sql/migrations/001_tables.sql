-- All tables are append-only: what a later row says about the same thing replaces an earlier one in the views.
CREATE TABLE prompts (
    id VARCHAR, dataset VARCHAR, messages STRUCT("role" VARCHAR, content VARCHAR)[], generator VARCHAR,
    parents VARCHAR[], language VARCHAR, meta JSON, run_id VARCHAR, created_at TIMESTAMP
);
CREATE TABLE completions (
    id VARCHAR, dataset VARCHAR, prompt_id VARCHAR, "text" VARCHAR, model VARCHAR, engine VARCHAR, sampling JSON,
    seed BIGINT, finish_reason VARCHAR, tokens BIGINT, parents VARCHAR[], call_key VARCHAR,
    run_id VARCHAR, created_at TIMESTAMP
);
CREATE TABLE judgements (
    id VARCHAR, dataset VARCHAR, prompt_id VARCHAR, completion_id VARCHAR, other_id VARCHAR, judge VARCHAR,
    judge_kind VARCHAR, rubric VARCHAR, aspect VARCHAR, shown_first VARCHAR, verdict VARCHAR, score DOUBLE,
    rationale VARCHAR, call_key VARCHAR, run_id VARCHAR, created_at TIMESTAMP
);
CREATE TABLE steps (
    id VARCHAR, dataset VARCHAR, completion_id VARCHAR, "index" BIGINT, "text" VARCHAR, label BIGINT,
    soft_label DOUBLE, rollouts BIGINT, run_id VARCHAR, created_at TIMESTAMP
);
CREATE TABLE verdicts (
    id VARCHAR, dataset VARCHAR, record_id VARCHAR, filter VARCHAR, keep BOOLEAN, reason VARCHAR, score DOUBLE,
    threshold DOUBLE, evidence_id VARCHAR, "text" VARCHAR, run_id VARCHAR, created_at TIMESTAMP
);
CREATE TABLE metrics (
    stage VARCHAR, step BIGINT, name VARCHAR, value DOUBLE, meta JSON, run_id VARCHAR, created_at TIMESTAMP
);
-- The journal: every engine call. `key` names the question and the model; the newest usable row of a key answers it.
CREATE TABLE calls (
    "key" VARCHAR, model VARCHAR, request JSON, max_tokens BIGINT, reply VARCHAR, finish_reason VARCHAR,
    prompt_tokens BIGINT, completion_tokens BIGINT, usd DECIMAL(18, 9), latency DOUBLE, error VARCHAR, meta JSON,
    run_id VARCHAR, created_at TIMESTAMP
);
CREATE TABLE run_events (
    run_id VARCHAR, event VARCHAR, spec VARCHAR, spec_hash VARCHAR, versions JSON, detail VARCHAR, created_at TIMESTAMP
);
-- The ledger: a stage that is listed here is done, and is skipped when its key (options and input) is the same.
CREATE TABLE stages (
    "key" VARCHAR, stage VARCHAR, dataset VARCHAR, output VARCHAR, run_id VARCHAR, created_at TIMESTAMP
);
