package runcmd

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/outputs/outputapi"
)

// settings are those of the module's block. A block has Ban or PortSentry's
// Route and Command.
type settings struct {
	// Ban and Unban are programs and their arguments, in which tokens are
	// replaced. There is no shell, so that an argument stays one argument.
	Ban   []string `json:"ban"`
	Unban []string `json:"unban"` // lifts what Ban or Route did

	Route        string   `json:"route"`         // KILL_ROUTE
	Command      string   `json:"command"`       // KILL_RUN_CMD
	CommandFirst bool     `json:"command_first"` // Command before Route
	CommandOnly  []string `json:"command_only"`  // "tcp", "udp": whose scans lead to Command alone

	IgnoreStatus bool   `json:"ignore_status"` // a command that fails counts as one that did not
	Concurrency  int    `json:"concurrency"`   // commands at a time; 0: four for Ban, else one
	Timeout      string `json:"timeout"`       // for a command; empty: a minute
	Mode         string `json:"mode"`          // the word for $MODE$; empty: stealth or connect, by the probe

	timeout     time.Duration
	mode        Mode
	commandOnly []detector.Proto
}

const (
	// atATime is how many commands of one's own run at a time. PortSentry runs
	// one, and its users' commands may rely on that.
	atATime        = 4
	maxConcurrency = 64

	maxTimeout = time.Hour
)

// readSettings returns the settings with their defaults. The error is of type
// [outputapi.Faults].
func readSettings(c outputapi.Configuration) (settings, error) {
	var s settings
	if err := c.Decode(&s); err != nil {
		return settings{}, err
	}
	var faults outputapi.Faults
	fault := func(key string, err error) {
		if err != nil {
			faults = append(faults, outputapi.Fault{Key: key, Text: err.Error()})
		}
	}
	if len(s.Ban) == 0 && s.Route == "" && s.Command == "" {
		fault("", errors.New(`there is nothing to run; set ban = ["/path/of/a/program", "$TARGET$"], or PortSentry's route or command`))
	}
	if len(s.Ban) > 0 {
		fault("route", s.besidesBan(s.Route != ""))
		fault("command", s.besidesBan(s.Command != ""))
	}
	fault("ban", checkArgs(s.Ban))
	fault("unban", checkArgs(s.Unban))
	fault("route", checkText(s.Route))
	fault("command", checkText(s.Command))
	fault("command_only", s.readCommandOnly())
	fault("concurrency", s.readConcurrency())
	fault("timeout", s.readTimeout())
	if s.Mode != "" {
		var err error
		s.mode, err = ParseMode(s.Mode)
		fault("mode", err)
	}
	if len(faults) > 0 {
		return settings{}, faults
	}
	return s, nil
}

func (s *settings) besidesBan(set bool) error {
	if !set {
		return nil
	}
	return errors.New("does not go with ban; put it into a program that ban runs")
}

// checkArgs says what is wrong with a command of several arguments, which may
// have none.
func checkArgs(args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := strings.Join(args, " ")
	switch {
	case !filepath.IsAbs(args[0]):
		return fmt.Errorf("%q is no absolute path of a program, and no $PATH is searched", args[0])
	case strings.Contains(args[0], target):
		return fmt.Errorf("%s stands in the name of the program", target)
	case !strings.Contains(text, target):
		return ErrNoTarget
	}
	return checkText(text)
}

func checkText(text string) error {
	if strings.ContainsRune(text, 0) {
		return errors.New("holds a zero byte")
	}
	return nil
}

func (s *settings) readCommandOnly() error {
	for _, name := range s.CommandOnly {
		proto := detector.TCP
		switch name {
		case "tcp":
		case "udp":
			proto = detector.UDP
		default:
			return fmt.Errorf(`%q is neither "tcp" nor "udp"`, name)
		}
		s.commandOnly = append(s.commandOnly, proto)
	}
	if len(s.commandOnly) > 0 && s.Command == "" {
		return errors.New("needs command")
	}
	return nil
}

func (s *settings) readConcurrency() error {
	switch {
	case s.Concurrency < 0 || s.Concurrency > maxConcurrency:
		return fmt.Errorf("%d is not from 1 to %d", s.Concurrency, maxConcurrency)
	case s.Concurrency == 0 && len(s.Ban) > 0:
		s.Concurrency = atATime
	case s.Concurrency == 0:
		s.Concurrency = 1
	}
	return nil
}

func (s *settings) readTimeout() error {
	s.timeout = DefaultTimeout
	if s.Timeout == "" {
		return nil
	}
	var err error
	s.timeout, err = time.ParseDuration(s.Timeout)
	if err != nil || s.timeout <= 0 || s.timeout > maxTimeout {
		return fmt.Errorf(`%q is no time up to %v; write it as "30s" or "1m30s"`, s.Timeout, maxTimeout)
	}
	return nil
}

// runsCommandOnly reports whether a ban that a probe over proto led to runs
// nothing but Command.
func (s *settings) runsCommandOnly(proto detector.Proto) bool {
	return slices.Contains(s.commandOnly, proto)
}
