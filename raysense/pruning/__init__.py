"""What is removed. Pure torch; knows no Ray and no disk. Importing this package loads no torch."""
