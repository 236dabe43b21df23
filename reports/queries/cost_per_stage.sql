-- What did each stage cost, and what did it buy?
SELECT
    stage, count(*) AS evaluations, sum(images) AS images, sum(nfe) AS nfe,
    round(100 * sum(nfe) / sum(sum(nfe)) OVER (), 1) AS percent_of_nfe,
    round(sum(seconds), 1) AS evaluator_seconds,
    count(*) FILTER (failed <> '') AS failed, count(*) FILTER (collapsed <> '') AS collapsed
FROM evaluations
GROUP BY stage
ORDER BY list_position(['baseline', 'sensitivity', 'search', 'validation'], stage);
