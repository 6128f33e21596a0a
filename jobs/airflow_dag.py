"""The nightly run on Airflow (2.4 or later, 3): the same command as cron's, its exit codes as Airflow's states.

What to change: JOBS, the schedule, and where alerts go (`email`, or an `on_failure_callback`).
"""

from datetime import datetime, timedelta

from airflow import DAG

try:
    from airflow.providers.standard.operators.bash import BashOperator
except ImportError:  # Airflow 2
    from airflow.operators.bash import BashOperator

JOBS = "/opt/batch_explain/jobs"  # on the workers, with batch-explain on their PATH
DRIFT, STOPPED = 4, 5

with DAG(
    dag_id="batch_explain_nightly",
    schedule="30 2 * * *",
    start_date=datetime(2024, 1, 1),
    catchup=False,
    max_active_runs=1,
    tags=["batch-explain"],
) as dag:
    explain = BashOperator(
        task_id="explain",
        # Stopped half-way (5) is tried again and goes on; anything else would fail again, so it is not.
        bash_command=(
            f"{JOBS}/nightly.sh {JOBS}/nightly.toml; code=$?; "
            f"if [ $code -ne 0 ] && [ $code -ne {DRIFT} ] && [ $code -ne {STOPPED} ]; then "
            'echo "exit code $code: not tried again" >&2; exit 99; fi; exit $code'
        ),
        env={"RUNS": "/data/explained", "TRIES": "1", "DAY": "{{ ds }}"},
        append_env=True,
        skip_on_exit_code=[DRIFT],  # the results are complete; the task is shown as skipped, and ALERT has been called
        retries=3,
        retry_delay=timedelta(minutes=5),
        execution_timeout=timedelta(hours=6),
    )
