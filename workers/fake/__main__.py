"""`python -m workers.fake`."""

from workers.fake.engine import main

if __name__ == "__main__":
    main()
