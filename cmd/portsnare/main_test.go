package main

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/portsnare/portsnare/parsers/conf"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"portsnare": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"status": status,
			"usage":  usage,
		},
	})
}

// status runs "status N command args...": the command must exit with status N.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N command args...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exitErr, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("run %s: %v", args[1], err)
		}
		got = exitErr.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}

// usage runs "usage PATTERN command args...": the command must say that it did
// not understand, in words that match the pattern, and where help is.
func usage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: usage PATTERN command args...")
	}
	status(ts, false, append([]string{"2"}, args[1:]...))
	if stdout := ts.ReadFile("stdout"); stdout != "" {
		ts.Fatalf("standard output is not empty: %q", stdout)
	}
	pattern := regexp.MustCompile(`^portsnare: .*` + args[0] + `.*\nTry "portsnare.* --help"\.\n$`)
	if stderr := ts.ReadFile("stderr"); !pattern.MatchString(stderr) {
		ts.Fatalf("%q does not match %s", stderr, pattern)
	}
}

// TestSignalEnds shows that a command which waits for its input can be stopped.
func TestSignalEnds(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ready := filepath.Join(t.TempDir(), "portsnare.toml")
	if err := os.WriteFile(ready, []byte(conf.DefaultNative()), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // then it is killed
	defer cancel()
	cmd := exec.CommandContext(ctx, program)
	cmd.Args = []string{"portsnare", "config", "check", ready, "/dev/stdin"}
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer input.Close()
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// It goes on to its standard input after this line.
	if _, err := bufio.NewReader(output).ReadString('\n'); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	err = cmd.Wait()
	state, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !state.Signaled() || state.Signal() != syscall.SIGTERM {
		t.Errorf("portsnare ended with %v, want %v", err, syscall.SIGTERM)
	}
}
