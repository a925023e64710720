"""The patterns by which `denoise` knows broken text, in English and Chinese, for the regexes of Polars (no lookaround).

Patterns named WANTS_... and ABOUT_... are looked for in the prompt and excuse what would otherwise be a fault.
"""

# -- empty and unfinished ----------------------------------------------------------------------------------------------
BLANK = r"^[\s\p{Cc}\p{Cf}]*$|(?i)^\s*(?:[<\[(]\s*no[ _-]?(?:output|input)\s*[>\])]|no(?:out|in)put)\.?\s*$"
# A last line that needs no full stop: an item, hashtags, a name behind a dash, an answer behind a colon.
FREE_END = (
    r"^\s*(?:[-*•#|>]|\d+[.)、]|```)|#\S+$|(?:^|[\s\"”’」])[-–—~]\s?(?:\S{1,20}\s?){1,3}$|[:：]\s*\S{1,20}$"
    r"|\d+\. \S+ \d+\. "
)
MID_SENTENCE = r"[\p{L},，、;；:：(（=+&]$"
LONG_LINE = r"(?:\S+\s+){11}\S|[\p{Han}\p{Hiragana}\p{Katakana}][^\n]{24}"
SENTENCE = r"[.!?]\s|[。！？]"
CODE = (
    r"```|</?\w+[^>\n]*>|print\(|[;{}]\s*\n"
    r"|(?m)^\s*(?:def|import|from|class|function|public|const|let|var|#include|SELECT|for|if)\b.*[({:;]"
)

# -- refusals ----------------------------------------------------------------------------------------------------------
_AI = r"(?:large |text-based )?(?:AI|artificial intelligence|language model|LLM|virtual assistant|chatbot)\b"
_AI_ZH = r"(?:文本|大型|大)?\s?(?:AI|人工智能|语言模型|聊天机器人|虚拟助手|文本机器人)"
AS_AN_AI = (
    rf"(?i)\bas (?:just |only )?an? {_AI}[^.,;!?\n]{{0,60}}?(?:,| i\b| my\b)"
    rf"|(?:^|[^你您他它])作为(?:一个|一名|一款|个|一位)?\s?{_AI_ZH}"
)
I_AM_AN_AI = rf"(?i)\bi(?:['’]| a)m (?:just |only )?an? {_AI}|我(?:只)?是(?:一个|一名|一款|个)?\s?{_AI_ZH}"
UNABLE = (
    r"(?i)\b(?:can ?not|can['’]t|unable|incapable|i (?:do not|don['’]t|am not|lack)|i['’]m not|no access"
    r"|not (?:able|capable|possible|designed|programmed))\b|无法|不能|不会|没有|并不|不具备|没办法"
)
# A refusal for a reason like these is the wanted answer to an unsafe prompt, however it speaks of itself.
HARM = (
    r"(?i)harm|illegal|unlawful|against the law|ethic|(?:in|not )appropriate|danger|violen|discriminat|suicid"
    r"|crim(?:e|inal)|abus|weapon|explosive|privacy|personal (?:data|information|records)|违法|犯法|有害|伤害|危害"
    r"|危险|道德|歧视|暴力|自杀|犯罪|不当|隐私|个人信息"
)
# Who asks about the model gets an answer about the model.
ABOUT_AI = (
    r"(?i)\bAIs?\b|artificial intelligence|chat-?\s?(?:bot|gpt)|language model|\bGPT|assistant|robot|who you are"
    r"|\b(?:do|are|were|did|have) you\b|人工智能|语言模型|机器人|助手|你是谁|您是"
    r"|[你您](?:有|是|会|做|看|感|喜欢|的)[^，。\n]{0,20}(?:吗|什么|谁|是否)"
)
REFUSAL = (
    r"(?i)^\W*(?:i['’]m |i am |i )?(?:so |very |really |deeply )?(?:sorry|apologi[sz]e|regret)\b[^\n]{0,60}?"
    r"\b(?:can ?not|can['’]t|unable|won['’]t|not able|not comfortable|will not)\b"
    r"|^\W*i (?:can ?not|can['’]t|won['’]t|will not|must decline|must refuse|am (?:unable|not able|not going) to)\b"
    r"|^\W*(?:非常|很|十分|真的)?(?:抱歉|对不起|遗憾|不好意思)[^\n。]{0,40}(?:无法|不能|不会|没办法|不便|不可以|拒绝)"
    r"|^\W*我(?:无法|不能|不会|没有办法|拒绝)[^\n。]{0,12}(?:提供|协助|帮助|帮你|帮您|回答|满足|完成|生成|支持|告诉)"
)

# -- leaked templates --------------------------------------------------------------------------------------------------
LEAKED = (
    r"<\|[a-zA-Z_]+\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|</s>\s*$"
    r"|(?m)^### ?(?:Instruction|Response|指令|回答|回复) ?[:：]"
    r"|Below is an instruction that describes a task"
)
JINJA = r"\{\{-?\s*[a-z_][\w.]*(?:\s*\|[^{}\n]*)?\s*-?\}\}|\{%-?\s*(?:if|for|set|else|elif|endif|endfor|block)\b"
LATEX_OR_CODE = r"\\[a-zA-Z]+\{|```"
WANTS_JINJA = r"(?i)template|jinja|html|code|vue|angular|django|flask|ansible|helm|mustache|handlebars|latex|模板|代码"
TURN = r"(?m)^(?:Human|User|Assistant|人类|用户|助手|助理) ?[:：]"
WANTS_TURNS = (
    r"(?i)dialog|conversation|chat|script|interview|role|skit|\bplay|scene|\bbot\b|assistant|user|human|talk|discuss"
    r"|对话|聊天|剧本|角色|助手|用户|机器人|人类|客服|采访|话术"
)

# -- broken encoding: what never occurs in sound text, and what only might not ----------------------------------------
# U+0085 and the vertical tab are line breaks of old systems; 锛, 銆 and 鈥 are UTF-8 punctuation read as GBK.
BROKEN = r"\x{FFFD}|ï¿½|[\x00-\x08\x0E-\x1F\x7F-\x{84}\x{86}-\x{9F}]|锟斤拷|烫烫烫|屯屯屯|锛|銆|鈥"
MAYBE_MOJIBAKE = r"[ÂÃÐÑØÙâãäåæçèéïð][\x{80}-\x{BF}€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"

# -- repetition, echo, language ----------------------------------------------------------------------------------------
STUTTER = r"[\x21-\x7E]{80,}|[!?。！？,，.…]{24,}"  # a long run without a blank may be one thing over and over
WANTS_REPEATS = r"(?i)\brepeat|\d+ times|\brepetit|verbatim|\bcopy\b|\becho\b|重复|复述|抄写|\d+\s?[次遍]"
LABEL = r"^\W*(?:question|q|prompt|instruction|human|user|input|task|问题|问|指令|题目|用户)\s?[\]】:：]+\s*"
WANTS_LANGUAGE = (
    r"(?i)translat|language|chinese|mandarin|cantonese|pinyin|japanese|kanji|kana|korean|hangul|russian|cyrillic|ukrain"
    r"|arabic|hindi|greek|hebrew|thai|english|french|spanish|german|italian|latin|unicode|emoji|script|alphabet|character"
    r"|译|语|英|文|拼音|单词|词汇|字母|外国|国外|代码|程序|编程|函数|网址|链接|公式|方程|命令"
)
