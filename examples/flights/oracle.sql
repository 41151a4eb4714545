-- What examples/flights/pipeline.yaml has to make of its data, written by hand and without Haulage: the raw files as
-- text in PostgreSQL, one statement that transforms them, and one that counts the rejects by reason.
--
-- Run it in the folder that holds the CSV files; it leaves schema `oracle` behind:
--
--     cd examples/flights/data && psql -v ON_ERROR_STOP=1 -f ../oracle.sql
BEGIN;
DROP SCHEMA IF EXISTS oracle CASCADE;
CREATE SCHEMA oracle;

CREATE TABLE oracle.raw (
    year text, month text, day text, dep_time text, sched_dep_time text, dep_delay text, arr_time text,
    sched_arr_time text, arr_delay text, carrier text, flight text, tailnum text, origin text, dest text,
    air_time text, distance text, hour text, minute text, time_hour text
);
CREATE TABLE oracle.airlines (carrier text, name text);
CREATE TABLE oracle.planes (
    tailnum text, year text, type text, manufacturer text, model text, engines text, seats text, speed text, engine text
);
CREATE TABLE oracle.airports (
    faa text, name text, lat text, lon text, alt text, tz text, dst text, tzone text
);
\copy oracle.raw FROM PROGRAM 'tail -q -n +2 flights-*.csv' (FORMAT csv)
\copy oracle.airlines FROM 'airlines.csv' (FORMAT csv, HEADER)
\copy oracle.planes FROM 'planes.csv' (FORMAT csv, HEADER)
\copy oracle.airports FROM 'airports.csv' (FORMAT csv, HEADER)

-- The target, in one statement.
CREATE TABLE oracle.flights_clean AS
SELECT make_date(f.year::int, f.month::int, f.day::int) AS flight_date,
       f.year::smallint AS year, f.month::smallint AS month, f.day::smallint AS day,
       nullif(f.dep_time, 'NA')::smallint AS dep_time, f.sched_dep_time::smallint AS sched_dep_time,
       nullif(f.dep_delay, 'NA')::smallint AS dep_delay, nullif(f.arr_time, 'NA')::smallint AS arr_time,
       f.sched_arr_time::smallint AS sched_arr_time, nullif(f.arr_delay, 'NA')::smallint AS arr_delay,
       f.carrier, f.flight::int AS flight, nullif(f.tailnum, 'NA') AS tailnum, f.origin, f.dest,
       nullif(f.air_time, 'NA')::smallint AS air_time, f.distance::int AS distance,
       f.hour::smallint AS hour, f.minute::smallint AS minute, f.time_hour::timestamptz AS time_hour,
       nullif(f.arr_delay, 'NA')::int > 15 AS late,
       a.name AS airline,
       nullif(p.year, 'NA')::smallint AS plane_year, nullif(p.manufacturer, 'NA') AS manufacturer,
       nullif(p.model, 'NA') AS model, nullif(p.seats, 'NA')::smallint AS seats,
       o.name AS origin_name, d.name AS dest_name
FROM oracle.raw f
LEFT JOIN oracle.airlines a ON a.carrier = f.carrier
LEFT JOIN oracle.planes p ON p.tailnum = f.tailnum
LEFT JOIN oracle.airports o ON o.faa = f.origin
LEFT JOIN oracle.airports d ON d.faa = f.dest
WHERE f.dep_time <> 'NA'
  AND f.arr_time <> 'NA'
  AND f.air_time <> 'NA'
  AND (f.dep_delay = 'NA' OR nullif(f.dep_delay, 'NA')::int BETWEEN -30 AND 720);

-- A row goes to quarantine for the first rule that names it.
CREATE TABLE oracle.rejects AS
SELECT reason, count(*) AS rows
FROM (
    SELECT CASE
               WHEN arr_time = 'NA' THEN 'no_arrival'
               WHEN air_time = 'NA' THEN 'diverted'
               WHEN nullif(dep_delay, 'NA')::int NOT BETWEEN -30 AND 720 THEN 'odd_delay'
           END AS reason
    FROM oracle.raw
    WHERE dep_time <> 'NA'
) judged
WHERE reason IS NOT NULL
GROUP BY reason;

CREATE TABLE oracle.counts AS
SELECT (SELECT count(*) FROM oracle.raw) AS read,
       (SELECT count(*) FROM oracle.flights_clean) AS loaded,
       (SELECT count(*) FROM oracle.raw WHERE dep_time = 'NA') AS filtered,
       (SELECT coalesce(sum(rows), 0)::bigint FROM oracle.rejects) AS rejected;
COMMIT;
