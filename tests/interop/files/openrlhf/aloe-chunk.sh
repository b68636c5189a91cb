#!/bin/bash
# one chunk of the general alignment
set -x
deepspeed --module openrlhf.cli.train_dpo \
   --save_path ./ckpt/chunk-0 \
   --save_steps -1 \
   --logging_steps 1 \
   --micro_train_batch_size 1 \
   --train_batch_size 128 \
   --pretrain ./merged \
   --bf16 \
   --max_epochs 1 \
   --max_len 4096 \
   --zero_stage 3 \
   --learning_rate 2e-7 \
   --beta 0.1 \
   --dataset HPAI-BSC/Aloe-Beta-DPO \
   --apply_chat_template \
   --chosen_key chosen \
   --rejected_key rejected \
   --flash_attn \
   --gradient_checkpointing
