-- Where does the sparsest allocation that passed prune? By block, in the order in which layers first run when an image
-- is made. (A layer that moves with a larger one has no row of its own; its zeros stand with the layer that leads it.)
WITH winner AS (
    SELECT allocation FROM verdicts
    WHERE rung = 'validation' AND feasible AND strategy <> 'dense' ORDER BY zeros DESC, key LIMIT 1
),
ordered AS (SELECT *, row_number() OVER (ORDER BY "order" NULLS LAST) AS position FROM layers)
SELECT
    l.block, count(*) AS layers, sum(l.weights) AS weights, coalesce(sum(a.zeros), 0)::BIGINT AS zeros,
    round(100 * coalesce(sum(a.zeros), 0) / sum(l.weights), 1) AS percent_removed
FROM ordered l
LEFT JOIN allocations a ON a.layer = l.layer AND a.allocation = (SELECT allocation FROM winner)
GROUP BY l.block
ORDER BY min(l.position);
