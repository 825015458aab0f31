package runcmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi"
	"github.com/portsnare/portsnare/outputs/outputapi/outputv1"
)

// ban runs the commands that ban a source, in the order of PortSentry's program,
// and says what came of it. Route or Ban decides whether the ban is in force; only
// where neither is to run does Command.
func (m *Module) ban(s source) (result outputapi.Result, told bool) {
	told = s.told
	tell := func() {
		if m.settings.Command == "" || told {
			return
		}
		act := m.runCommand(s.tokens)
		told = act.Err == nil
		result.Acts = append(result.Acts, act)
	}
	alone := len(m.settings.Ban) == 0 && m.settings.Route == ""
	if alone || s.probe && m.settings.runsCommandOnly(s.proto) {
		told = false // it is what bans
		tell()
		result.Err = result.Acts[0].Err
		return result, told
	}
	if m.settings.CommandFirst {
		tell()
	}
	act := m.runBan(s.tokens)
	result.Acts = append(result.Acts, act)
	result.Err = act.Err
	if !m.settings.CommandFirst {
		tell()
	}
	return result, told
}

// runBan runs what keeps a source out.
func (m *Module) runBan(t Tokens) detector.Act {
	act := detector.Act{Kind: detector.ActRoute, Text: m.settings.Route}
	if m.settings.Route == "" {
		args, err := expandArgs(m.settings.Ban, t)
		act.Text = strings.Join(args, " ")
		if act.Err = err; err == nil {
			act.Err = m.runArgs(args)
		}
		return act
	}
	command, err := ExpandBan(m.settings.Route, t)
	if errors.Is(err, ErrNoTarget) {
		act.Err = detector.ErrNoTarget
		return act
	}
	act.Text = command
	if act.Err = err; err == nil {
		act.Err = m.runShell(command)
	}
	return act
}

func (m *Module) runCommand(t Tokens) detector.Act {
	command, err := Expand(m.settings.Command, t)
	if err == nil {
		err = m.runShell(command)
	}
	return detector.Act{Kind: detector.ActCommand, Text: command, Err: err}
}

// expandArgs replaces the tokens in each argument. It returns nil for none.
func expandArgs(args []string, t Tokens) ([]string, error) {
	var expanded []string
	for _, arg := range args {
		word, err := Expand(arg, t)
		if err != nil {
			return nil, err
		}
		expanded = append(expanded, word)
	}
	return expanded, nil
}

func (m *Module) runShell(command string) error {
	return m.run(command, func(r *Runner) error { return r.Run(context.Background(), command) })
}

func (m *Module) runArgs(args []string) error {
	return m.run(strings.Join(args, " "), func(r *Runner) error {
		return r.Exec(context.Background(), args[0], args[1:]...)
	})
}

// run runs a command, which text shows, and logs what it prints. An error names
// the command and holds the last line of that.
func (m *Module) run(text string, start func(*Runner) error) error {
	var printed head
	r := m.runner
	r.Stdout, r.Stderr = &printed, &printed
	err := start(&r)
	output := printed.String()
	m.output.log(text, output)
	if err == nil {
		return nil
	}
	if last := lastOf(output); last != "" {
		return fmt.Errorf("%q: %w: %s", text, err, last)
	}
	return fmt.Errorf("%q: %w", text, err)
}

const (
	maxOutput = 1024 // bytes of one command's output that are kept
	maxLast   = 200  // bytes of its last line that an error has

	// Of how many commands the output is logged in a time.
	outputsLogged = 20
	outputsWithin = 10 * time.Second
)

// lastOf returns the last line of an output that is not blank.
func lastOf(output string) string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	return outputv1.Text(lines[len(lines)-1], maxLast)
}

// A head keeps the first bytes that are written to it. It never fails, so that no
// command ends by SIGPIPE.
type head struct {
	mu   sync.Mutex // a command's process in the background may write on
	text []byte
}

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.text = append(h.text, p[:min(len(p), maxOutput-len(h.text))]...)
	return len(p), nil
}

func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return string(bytes.ToValidUTF8(slices.Clone(h.text), nil))
}

// An outputLog logs what commands print, but no more than somebody may want to
// read: strangers make them run.
type outputLog struct {
	mu      sync.Mutex
	since   time.Time
	logged  int
	dropped int
}

func (l *outputLog) log(command, output string) {
	if strings.TrimSpace(output) == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.since) > outputsWithin {
		l.since, l.logged = now, 0
	}
	if l.logged++; l.logged > outputsLogged {
		l.dropped++
		return
	}
	attributes := []any{"command", command, "output", output}
	if l.dropped > 0 {
		attributes = append(attributes, "not_logged", l.dropped)
	}
	l.dropped = 0
	slog.Info("command printed", attributes...)
}
