-- Which prompts suffer most from the sparsest allocation that passed on held-out prompts?
WITH winner AS (
    SELECT key FROM verdicts WHERE rung = 'validation' AND feasible AND strategy <> 'dense' ORDER BY zeros DESC, key LIMIT 1
)
SELECT
    s.prompt, s.seed, round(s.value, 4) AS clip_score_drop,
    round(c.value, 4) AS clip_score_pruned, round(c.value + s.value, 4) AS clip_score_dense
FROM samples s
JOIN winner USING (key)
JOIN samples c ON c.key = s.key AND c.prompt_id = s.prompt_id AND c.seed = s.seed AND c.metric = 'clip_score'
WHERE s.metric = 'clip_score_drop'
ORDER BY s.value DESC, s.prompt, s.seed
LIMIT 15;
