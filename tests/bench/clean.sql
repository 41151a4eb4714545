-- The already clean data, made by PostgreSQL itself: what raw \copy then loads. Run in the folder of the data with
-- HAULAGE_BENCH_FILE set to the name of the flights file; writes to standard output.
\set ON_ERROR_STOP on
\set QUIET on
CREATE TEMP TABLE raw (
    year int2, month int2, day int2, dep_time int2, sched_dep_time int2, dep_delay int2, arr_time int2,
    sched_arr_time int2, arr_delay int2, carrier text, flight int, tailnum text, origin text, dest text,
    air_time int2, distance int, hour int2, minute int2, time_hour timestamptz
);
CREATE TEMP TABLE airlines (carrier text, name text);
CREATE TEMP TABLE planes (
    tailnum text, year int2, type text, manufacturer text, model text, engines text, seats int2, speed text, engine text
);
CREATE TEMP TABLE airports (faa text, name text, lat text, lon text, alt text, tz text, dst text, tzone text);
\copy raw FROM PROGRAM 'cat "$HAULAGE_BENCH_FILE"' (FORMAT csv, HEADER, NULL 'NA')
\copy airlines FROM 'airlines.csv' (FORMAT csv, HEADER)
\copy planes FROM 'planes.csv' (FORMAT csv, HEADER, NULL 'NA')
\copy airports FROM 'airports.csv' (FORMAT csv, HEADER, NULL 'NA')
\copy (SELECT f.*, a.name, p.year, p.manufacturer, p.model, p.seats, o.name, d.name FROM raw f LEFT JOIN airlines a ON a.carrier = f.carrier LEFT JOIN planes p ON p.tailnum = f.tailnum LEFT JOIN airports o ON o.faa = f.origin LEFT JOIN airports d ON d.faa = f.dest WHERE f.dep_time IS NOT NULL) TO STDOUT (FORMAT csv)
