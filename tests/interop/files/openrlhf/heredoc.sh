set -x
read -r -d '' training_commands <<EOF
openrlhf.cli.train_dpo \
   --pretrain meta-llama/Llama-3.1-8B-Instruct \
   --ref_pretrain meta-llama/Llama-3.1-8B-Instruct \
   --dataset TsinghuaC3I/UltraMedical-Preference --apply_chat_template \
   --micro_train_batch_size 2 --train_batch_size 256 --max_epochs 1 --max_len 8192 \
   --zero_stage 3 --learning_rate 5e-7 --beta 0.05 --bf16 --flash_attn --packing_samples \
   --lr_warmup_ratio 0.1 --adam_betas 0.9 0.999 --l2 0.01
EOF
if [[ ${1} != "slurm" ]]; then
    deepspeed --module $training_commands
fi
