-- How loud is the noise? Per-image spread of the paired CLIP drop, the standard error it leaves, and the smallest drop
-- that so many images can tell from none; between seeds of one prompt where a rung has several.
WITH drops AS (
    SELECT s.key, s.rung, s.prompt_id, s.seed, s.value, e.zeros / e.n_components AS sparsity
    FROM samples s JOIN evaluations e USING (key)
    WHERE s.metric = 'clip_score_drop' AND e.stage <> 'baseline'
),
within AS (SELECT key, avg(v) AS variance FROM (SELECT key, var_samp(value) AS v FROM drops GROUP BY key, prompt_id) GROUP BY key)
SELECT
    d.rung, round(100 * any_value(d.sparsity), 1) AS percent_removed, count(*) AS images,
    round(avg(d.value), 4) AS mean_drop, round(stddev_samp(d.value), 4) AS spread_between_images,
    round(sqrt(any_value(w.variance)), 4) AS spread_between_seeds,
    round(stddev_samp(d.value) / sqrt(count(*)), 4) AS standard_error,
    round(1.96 * stddev_samp(d.value) / sqrt(count(*)), 4) AS smallest_drop_seen
FROM drops d LEFT JOIN within w USING (key)
GROUP BY d.key, d.rung
ORDER BY d.rung, percent_removed, d.key;
