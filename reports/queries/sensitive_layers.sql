-- Which groups hurt most, and at what share removed? Damage is the probe error when only this group is pruned.
WITH curves AS (
    SELECT
        l."group", min(l.component) AS component, e.key,
        sum(a.zeros) AS zeros, any_value(m.metric) AS metric,
        any_value(m.value) AS damage, any_value(m.low) AS low, any_value(m.high) AS high
    FROM evaluations e
    JOIN measures m USING (key)
    JOIN allocations a ON a.allocation = e.allocation
    JOIN layers l ON l.layer = a.layer
    WHERE e.stage = 'sensitivity' AND e.failed = ''
    GROUP BY l."group", e.key, m.metric
)
SELECT
    "group", component, count(*) AS measured_levels, max(zeros) AS most_zeros,
    round(max(damage), 5) AS worst_damage,
    round(arg_max(low, damage), 5) AS worst_low, round(arg_max(high, damage), 5) AS worst_high
FROM curves
GROUP BY "group", component
ORDER BY worst_damage DESC, "group"
LIMIT 20;
