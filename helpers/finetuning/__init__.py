"""Fine-tuning on SQuAD-format text with torch: quantization-aware, 2:4 sparse, or plain. squad/finetune.py is its script."""
