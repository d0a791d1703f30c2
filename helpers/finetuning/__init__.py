"""Fine-tuning on SQuAD-format text with torch: plain, quantization-aware, 2:4 sparse; the script: squad/finetune.py."""
