// Sample prompts: ways of asking that work, each to be changed and tried.

const EXAMPLES_PII = [
  ["Once you are happy with it, feel free to sign off on the table up the top.", "NO_PII"],
  [
    "During the Zoom call on April 10th, Sarah mentioned that she's moving to 123 Maple Street, Portland, next month due to her promotion at Acme Corp.",
    "CONTAINS_PII",
  ],
  [
    "An employee at a large tech company mentioned they recently received a promotion and will be relocating to a different city next month for a new project.",
    "NO_PII",
  ],
  ["John Smith, a 45-year-old from Los Angeles, has been prescribed medication for his Type 2 diabetes.", "CONTAINS_PII"],
];

/**
 * @typedef {{title, lesson, prompt, system?, examples?: [question, answer][], parameters?}} Sample
 * @type {Sample[]}
 */
export const SAMPLES = [
  {
    title: "Find personal data",
    lesson: "Few-shot: a system prompt that allows two answers, and four examples.",
    system:
      "The assistant is a classification model and only responds by classifying the user's text as CONTAINS_PII or NO_PII. " +
      "The assistant only responds with CONTAINS_PII or NO_PII. DO NOT return any other text.",
    examples: EXAMPLES_PII,
    prompt: "Please send the invoice to Maria Lopez, 14 Elm Road, Austin; her number is 512-555-0142.",
    parameters: { temperature: 0, max_tokens: 8 },
  },
  {
    title: "A character as JSON",
    lesson: "A format is enforced while the answer is written: it always parses.",
    prompt: "Give me the character profile of a gumdrop obsessed knight in JSON.",
    parameters: { temperature: 0.7, max_tokens: 300, response_format: { type: "json_object" } },
  },
  {
    title: "Fifteen muffins",
    lesson: "Step by step: time to think, and reasoning that can be checked.",
    prompt:
      "I baked 15 muffins. I ate 2 muffins and gave 5 muffins to a neighbor. My partner then bought 6 more muffins and ate 2. " +
      "Do I have a prime number of muffins? Think step by step.",
    parameters: { temperature: 0, max_tokens: 400 },
  },
  {
    title: "Why the sky is blue",
    lesson: "Precise instructions: for whom, and in how many words.",
    prompt: "Explain what makes the sky blue to a five year old in 50 or fewer words.",
    parameters: { temperature: 0.3, max_tokens: 120 },
  },
  {
    title: "A function with its test",
    lesson: "Code wants a low temperature, and to be told what it may use.",
    prompt:
      "Write a Python function `is_prime(n: int) -> bool` with a docstring, using the standard library only. " +
      "Then write three assertions that test it.",
    parameters: { temperature: 0, max_tokens: 400 },
  },
  {
    title: "Answer from a text",
    lesson: "One delimiter throughout: what is instruction, and what is material.",
    system: "Answer only from the text between ## Text and ## Question. If it does not say, answer: The text does not say.",
    prompt:
      "## Text\nThe Rhine rises in the Swiss Alps, passes through Lake Constance and reaches the North Sea after about 1,230 km. " +
      "Its largest tributary by discharge is the Aare.\n\n## Question\nHow long is the Rhine, and where does it end?",
    parameters: { temperature: 0, max_tokens: 120 },
  },
];
