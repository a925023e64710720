-- Every parent that a record names is a record or a call of this store.
SELECT l.kind, l.dataset, l.child, l.parent FROM lineage l
WHERE NOT EXISTS (FROM prompts p WHERE p.id = l.parent) AND NOT EXISTS (FROM completions c WHERE c.id = l.parent)
  AND NOT EXISTS (FROM calls k WHERE k."key" = l.parent)
