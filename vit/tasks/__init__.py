"""What is built on the core, one file a task; nothing in the core knows it, and no task knows another.

from vit.tasks import fine_tuning, lora, mae, progressive, prompts
"""
