"""The graphs that are offered in Chinese too: English title -> Chinese title, and the note of each graph."""

from __future__ import annotations

TITLES = {
    "Side by side": "左右拼接",
    "Start here": "从这里开始",
    "1. The person": "1. 人物",
    "1. The two people": "1. 两个人",
    "1. Images of the person": "1. 人物的照片",
    "2. Model and method": "2. 模型和方法",
    "2. Model": "2. 模型",
    "3. Prompt": "3. 提示词",
    "3. Training": "3. 训练",
    "4. Portrait": "4. 人像",
    "4. Both in one image": "4. 放到一张图里",
    "4. What was learned": "4. 学到了什么",
    "5. Prompt": "5. 提示词",
    "6. Portrait": "6. 人像",
    "Which face was taken": "选中的脸",
    "Positive prompt": "正面提示词",
    "Negative prompt": "负面提示词",
    "Apply Identity: left": "应用身份：左边的人",
    "Apply Identity: right": "应用身份：右边的人",
    "The person on the left": "左边的人",
    "The person on the right": "右边的人",
    "Image, mask, caption, verdict": "图像、遮罩、描述、判断",
    "Losses": "损失曲线",
    "Samples": "样图",
    "Files and words": "文件和词",
}

NOTES = {
    "portrait_from_one_photo": """\
# 1. 点击“运行”

不需要下载任何东西：照片（模型从未见过的人）和模型都在节点包里。

# 2. 改提示词，再点“运行”

微型世界认识卡通人物、128x128 像素和几十个英文词；“加载微型模型”的帮助页列出了它们。
其余都和大模型一样，可以在这里试用各个节点。

# 3. 用自己的照片

真实照片需要真正的模型：`likeness models get sd15 buffalo_l ip-adapter-faceid_sd15`。
然后把“加载图像”接到“示例照片”的位置，把“Checkpoint加载器”接到“加载微型模型”的位置，
选择 *buffalo_l* 和 *ip-adapter-faceid_sd15.bin*，并把空 Latent 设为 512x512。
工作流 **portrait_faceid** 里这些都已经接好。
""",
    "miniature_two_people": """\
# 1. 点击“运行”

不需要下载任何东西。节点包自带的模型一次画一个人，所以两个人分别生成，再拼在一起。

# 2. 用自己的照片

大模型可以把两个人画在同一个场景里：工作流 **two_people** 用遮罩给每个人一半画面，
**instantid_two_people** 和 **photomaker_two_people** 是另外两种方法。
""",
    "train_dreambooth": """\
# 1. 点击“运行”

不需要下载任何东西。可以随时取消：再次运行时从停下的地方继续，已完成的训练不会重复。训练记录在 `output/likeness/runs`。

# 2. 用自己的照片

准备四到十张照片，放进 ComfyUI 的 `input` 下的一个文件夹，在“人像数据集”的 `folder` 里填写文件夹名，并删除“示例照片”。
用“Checkpoint加载器”替换“加载微型模型”，人脸分析从 *miniature* 换成 *buffalo_l* 等，“人像数据集”的分辨率设为模型的分辨率
（512 或 1024），步数和学习率见训练节点的帮助页。
""",
}
