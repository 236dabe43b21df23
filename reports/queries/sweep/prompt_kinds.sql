-- What kind of prompt suffers? CLIP score lost at half of the Linear weights, prompts that say where something is against
-- those that only name colours; the interval is two standard errors.
SELECT p.groups, round(p.sparsity, 2) AS removed,
    CASE WHEN regexp_matches(s.prompt, '\b(between|above|below|under|over|behind|beside)\b') THEN 'position' ELSE 'colour' END
        AS kind,
    count(DISTINCT s.prompt_id) AS prompts, round(avg(s.value), 4) AS lost,
    round(2 * stddev_samp(s.value) / sqrt(count(*)), 4) AS plus_minus
FROM points p JOIN samples s USING (key)
WHERE s.metric = 'clip_score_drop' AND p.rule = 'uniform' AND p.method = 'magnitude' AND p.groups NOT LIKE '%+%'
    AND abs(p.sparsity - 0.5) < 0.01
GROUP BY ALL ORDER BY p.groups, removed, kind;
