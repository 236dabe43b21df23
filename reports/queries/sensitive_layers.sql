-- Which groups hurt most, and at what share removed? Damage is the probe error when only this group is pruned.
SELECT
    "group", component, count(*) AS measured_levels, max(zeros) AS most_zeros,
    round(max(damage), 5) AS worst_damage,
    round(arg_max(ci_low, damage), 5) AS worst_ci_low, round(arg_max(ci_high, damage), 5) AS worst_ci_high
FROM curves
WHERE metric = 'probe_error'
GROUP BY "group", component
ORDER BY worst_damage DESC, "group"
LIMIT 20;
