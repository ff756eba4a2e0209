"""Wake-ups of idle workers: over Postgres by Procrastinate, or over Redis or SQS by Celery."""
