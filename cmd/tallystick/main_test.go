package main

import (
	"testing"

	"github.com/tallystick/tallystick/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
