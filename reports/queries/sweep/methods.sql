-- Which method is best on the text encoder? CLIP score lost at each share, methods side by side; `wins` names the least.
WITH lost AS (
    SELECT p.method || CASE p.rule WHEN 'uniform' THEN '' ELSE ', ' || p.rule END AS method, round(p.sparsity, 2) AS removed,
        m.value, m.ci_low, m.ci_high
    FROM points p JOIN measures m USING (key)
    WHERE p.point_set = 'text-encoder' AND m.metric = 'clip_score_drop'
)
SELECT removed, arg_min(method, value) AS wins, round(min(value), 4) AS lost, round(arg_min(ci_high, value), 4) AS at_most,
    arg_max(method, value) AS loses, round(max(value), 4) AS loses_with
FROM lost GROUP BY removed ORDER BY removed;
