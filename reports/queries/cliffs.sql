-- Where is each group's cliff? Between the last level whose damage is surely tolerable and the first that is not.
-- 0.05 is raysense.report.frames.TOLERABLE: a twentieth of the denoiser's guided output.
WITH probed AS (
    FROM curves WHERE metric = 'probe_error'
),
edges AS (
    SELECT "group", min(zeros) FILTER (high > 0.05) AS zeros_over, max(damage) AS worst_damage FROM probed GROUP BY "group"
)
SELECT
    c."group",
    coalesce(max(c.zeros) FILTER (c.zeros < coalesce(e.zeros_over, c.zeros + 1)), 0) AS zeros_safe,
    any_value(e.zeros_over) AS zeros_over,
    round(any_value(e.worst_damage), 5) AS worst_damage
FROM probed c JOIN edges e USING ("group")
GROUP BY c."group"
ORDER BY zeros_over NULLS LAST, worst_damage DESC, c."group";
