package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/portsnare/portsnare/parsers/cmdline"
	"github.com/portsnare/portsnare/parsers/conf"
	"github.com/portsnare/portsnare/parsers/logline"
)

// portSentry is the name under which the daemon takes PortSentry's place: as its
// own, or as that of the personality.
const portSentry = "portsentry"

// personalityFlag, as the first argument, says whose place the daemon takes. What
// follows is for that program.
const personalityFlag = "--personality"

// asPortSentry returns PortSentry's arguments if it is PortSentry that was called.
func asPortSentry(program string, args []string) (theirs []string, ours bool, err error) {
	if filepath.Base(program) == portSentry {
		return args, true, nil
	}
	if len(args) == 0 {
		return nil, false, nil
	}
	name, found := strings.CutPrefix(args[0], personalityFlag+"=")
	rest := args[1:]
	if args[0] == personalityFlag && len(rest) > 0 {
		name, rest, found = rest[0], rest[1:], true
	}
	switch {
	case !found:
		return nil, false, nil
	case name != portSentry:
		return nil, false, fmt.Errorf("%s: %q is none; use %s", personalityFlag, name, portSentry)
	}
	return rest, true, nil
}

// runPortSentry runs as the generation of PortSentry that the arguments tell.
func runPortSentry(args []string, stdout, stderr io.Writer) int {
	// By this name it is looked for. Without it all else works.
	_ = os.WriteFile("/proc/self/comm", []byte(portSentry), 0)
	if word, ok := cmdline.ParsePortSentry1(args); ok {
		return runPortSentry1(word, stdout, stderr)
	}
	return runPortSentry2(args, stdout, stderr)
}

// rootNeeded is what PortSentry says to others than root.
const rootNeeded = "You need to be root to run this."

// inBackground tells a process that it is the one in the background.
const inBackground = "PORTSNARED_IN_BACKGROUND"

// isBackground reports whether this is the process in the background. It keeps
// that from the commands that it starts, and can be asked once.
func isBackground() bool {
	_, set := os.LookupEnv(inBackground)
	if set {
		_ = os.Unsetenv(inBackground) // it can only fail for names that cannot be set
	}
	return set
}

// goToBackground starts this program again as a daemon: in a session of its own,
// with nothing to read from or to print to. Go cannot fork.
func goToBackground() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("go to the background: %w", err)
	}
	cmd := &exec.Cmd{
		Path:        self,
		Args:        os.Args,
		Env:         append(os.Environ(), inBackground+"=1"),
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("go to the background: %w", err)
	}
	return cmd.Process.Release()
}

// leaveDirectory goes where a daemon keeps nobody from unmounting anything, and
// returns the directory that relative names lead from.
func leaveDirectory() (dir string, err error) {
	if dir, err = os.Getwd(); err != nil {
		return "", err
	}
	return dir, os.Chdir("/")
}

// nameFilesFrom has the files that cfg names be those that dir has.
func nameFilesFrom(dir string, cfg *conf.Config) {
	cfg.Detect.Ignore = slices.Clone(cfg.Detect.Ignore)
	paths := []*string{&cfg.Log.History, &cfg.Ban.File}
	for i := range cfg.Detect.Ignore {
		paths = append(paths, &cfg.Detect.Ignore[i])
	}
	for _, path := range paths {
		if *path != "" {
			*path = absolute(dir, *path)
		}
	}
}

func absolute(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// upstream returns what PortSentry says about err, or "" if it has no words for
// it: of the faults of a configuration it reports the first alone.
func upstream(err error) string {
	if fault, ok := errors.AsType[conf.Fault](err); ok {
		return fault.Upstream
	}
	return ""
}

// explainTo says in our words what PortSentry's do not tell: file, line and key,
// and what to do.
func explainTo(w io.Writer, err error) {
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintf(w, "%s: %s\n", portSentry, strings.TrimSuffix(line, "\n"))
	}
}

// warn says what may not mean what its author thinks, in PortSentry's words, if it
// has any, and in ours.
func (v *voice) warn(warnings ...conf.Warning) {
	for _, w := range warnings {
		if w.Upstream != "" {
			v.say(logline.Error, "%s", w.Upstream)
		}
		v.say(logline.Error, "%swarning: %v", v.prefix, w)
	}
}

// sayError says what went wrong in PortSentry's words, if it has any, and in ours.
func (v *voice) sayError(err error) {
	if text := upstream(err); text != "" {
		v.say(logline.Error, "%s", text)
	}
	for line := range strings.Lines(err.Error()) {
		v.say(logline.Error, "%s%s", v.prefix, strings.TrimSuffix(line, "\n"))
	}
}
