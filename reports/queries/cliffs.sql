-- Where is each group's cliff? Between the last level whose damage is surely tolerable and the first that is not.
-- 0.05 is raysense.report.frames.TOLERABLE: a twentieth of the denoiser's guided output.
WITH curves AS (
    SELECT l."group", e.key, sum(a.zeros) AS zeros, any_value(m.value) AS damage, any_value(m.high) AS high
    FROM evaluations e
    JOIN measures m USING (key)
    JOIN allocations a ON a.allocation = e.allocation
    JOIN layers l ON l.layer = a.layer
    WHERE e.stage = 'sensitivity' AND e.failed = '' AND m.metric = 'probe_error'
    GROUP BY l."group", e.key
),
edges AS (
    SELECT "group", min(zeros) FILTER (high > 0.05) AS zeros_over, max(damage) AS worst_damage FROM curves GROUP BY "group"
)
SELECT
    c."group",
    coalesce(max(c.zeros) FILTER (c.zeros < coalesce(e.zeros_over, c.zeros + 1)), 0) AS zeros_safe,
    any_value(e.zeros_over) AS zeros_over,
    round(any_value(e.worst_damage), 5) AS worst_damage
FROM curves c JOIN edges e USING ("group")
GROUP BY c."group"
ORDER BY zeros_over NULLS LAST, worst_damage DESC;
