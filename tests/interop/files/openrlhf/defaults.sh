deepspeed --module openrlhf.cli.train_dpo --pretrain ./merged --dataset data/pairs.jsonl --apply_chat_template
