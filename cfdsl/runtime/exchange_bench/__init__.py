"""`bench collectives`: which exchanges to time (`cases`), right or wrong (`reference`), how long (`run`), and what follows (`verdicts`)."""
