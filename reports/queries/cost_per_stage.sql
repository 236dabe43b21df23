-- What did each stage cost, and what did it buy?
SELECT
    stage, count(*) AS evaluations, sum(images) AS images, sum(cost) AS sample_forwards,
    round(100 * sum(cost) / sum(sum(cost)) OVER (), 1) AS percent_of_cost,
    round(sum(seconds), 1) AS evaluator_seconds,
    count(*) FILTER (failed <> '') AS failed, count(*) FILTER (collapsed <> '') AS collapsed
FROM evaluations
GROUP BY stage
ORDER BY list_position(['baseline', 'sensitivity', 'search', 'validation'], stage);
