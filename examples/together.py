"""Unlike requests stepped together: every prompt, reference, plan and number of steps its own, one network."""

from pathlib import Path

import instantstyle as ist

if __name__ == "__main__":
    engine = ist.Engine(ist.load())
    neon = ist.StyleReference(Path(__file__).parent / "references/dog-neon.png", content="dog")
    engine.submit(ist.Request("a cat", references=[neon], seed=1))
    engine.submit(ist.Request("a house", references=[neon], plan="all", guidance=2.0, seed=2))
    engine.submit(ist.Request("a rocket", steps=15, seed=3))
    Path("out").mkdir(exist_ok=True)
    for number, result in enumerate(engine.run()):
        print(*result.save(f"out/together-{number}.png"))
