-- Where is each group's cliff? Between the last share of its weights whose damage is surely tolerable and the first that
-- is not, most fragile first; shares are compared in whole percents, as levels lie a little apart from group to group.
-- 0.05 is raysense.results.run.TOLERABLE: a twentieth of the denoiser's guided output.
WITH probed AS (
    FROM curves WHERE metric = 'probe_error'
),
edges AS (
    SELECT "group", min(sparsity) FILTER (ci_high > 0.05) AS over, max(damage) AS worst_damage FROM probed GROUP BY "group"
),
cliffs AS (
    SELECT
        p."group", any_value(p.weights) AS weights,
        coalesce(max(p.sparsity) FILTER (e.over IS NULL OR p.sparsity < e.over), 0) AS safe,
        any_value(e.over) AS over, any_value(e.worst_damage) AS worst_damage
    FROM probed p JOIN edges e USING ("group")
    GROUP BY p."group"
)
SELECT
    "group", weights, round(100 * safe, 1) AS percent_safe, round(100 * over, 1) AS percent_over,
    round(worst_damage, 5) AS worst_damage
FROM cliffs
ORDER BY round((safe + over) / 2, 2) NULLS LAST, worst_damage DESC, "group";
