package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/portsnare/portsnare/internal/nettest"
	"github.com/portsnare/portsnare/outputs/firewall"
	"github.com/portsnare/portsnare/outputs/outputapi"
)

// asProgram makes the test binary behave as portsnared, so that tests can start
// it on a test host.
const asProgram = "PORTSNARED_AS_PROGRAM"

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "firewall" { // started by a daemon, as its module
		outputapi.Serve(new(firewall.Module))
		return
	}
	if os.Getenv(asProgram) != "" {
		main()
	}
	nettest.Isolate()
	testscript.Main(m, map[string]func(){"portsnared": main, "portsentry": main})
}

func TestScripts(t *testing.T) {
	fixtures, err := filepath.Abs("../../detector/capture/testdata")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("FIXTURES", fixtures)
			env.Setenv("TZ", "UTC")
			// A program built for the race detector sleeps a second at its end, unless told.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			return nil
		},
	})
}
