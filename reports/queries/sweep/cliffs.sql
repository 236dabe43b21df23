-- Where is each curve's cliff? Knee and collapse with their intervals, in percent of the group's weights.
SELECT groups, method, rule, place, round(100 * sparsity, 1) AS percent, round(100 * ci_low, 1) AS at_least,
    round(100 * ci_high, 1) AS at_most, points
FROM cliffs WHERE sparsity IS NOT NULL ORDER BY groups, method, rule, place DESC;
