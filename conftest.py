"""Where pytest does not look for doctests: in the adapters of hosts that may be absent."""

HOSTS = ("detectron2", "effdet", "mmdet", "transformers", "ultralytics", "monai", "libreyolo")
collect_ignore = [*(f"src/drloss/adapters/{host}.py" for host in HOSTS), "tests/support/small_detr.py"]
