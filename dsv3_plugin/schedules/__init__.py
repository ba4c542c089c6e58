"""Pipeline schedules as data: actions, proof, time, picture, search. No torch."""
