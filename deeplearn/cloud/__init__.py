"""From one machine to a pod: Cloud TPU VMs by `gcloud`, and examples for SLURM and Kubernetes."""
