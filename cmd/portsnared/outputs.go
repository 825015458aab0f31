package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/internal/logfile"
	"github.com/portsnare/portsnare/internal/version"
	"github.com/portsnare/portsnare/outputs"
	"github.com/portsnare/portsnare/outputs/jsonlog"
	"github.com/portsnare/portsnare/outputs/names"
	"github.com/portsnare/portsnare/outputs/portsentrylog"
	"github.com/portsnare/portsnare/parsers/conf"
	"github.com/portsnare/portsnare/parsers/logline"
)

// An outputSet is the outputs that a configuration asks for and what they
// hold open.
type outputSet struct {
	named   []outputs.Named
	closers []io.Closer
	bootID  string        // tells the events of this run from those of any other
	leftOut atomic.Uint64 // probes without a line or a record, because of their number
}

// openOutputs opens the outputs of cfg. Files are created at once, so that a
// wrong path is an error at the start and log readers find what they watch. A
// full disk is no reason not to start: it may have room when there is something
// to write.
func openOutputs(cfg conf.Config, out, fault outputs.Appender, form portsentrylog.Form) (_ *outputSet, err error) {
	set := &outputSet{bootID: rand.Text()}
	defer func() {
		if err != nil {
			err = errors.Join(err, set.close())
		}
	}()
	if !cfg.Log.NoStdout {
		set.addLimited(cfg, "stdout", portsentrylog.NewLines(out, fault, form))
	}
	if cfg.Log.History != "" && cfg.Log.History != os.DevNull {
		history, err := set.file(cfg.Log.History, 0o644)
		if err != nil {
			return nil, historyFault(cfg.Log.History, err)
		}
		set.addLimited(cfg, "history", newHistory(cfg.Log.HistoryFormat, history))
	}
	if cfg.Log.Syslog {
		syslog := portsentrylog.NewSyslog(portsentrylog.SyslogOptions{
			Tag:  cfg.Log.SyslogTag,
			Form: form,
		})
		set.closers = append(set.closers, syslog)
		set.addLimited(cfg, "syslog", syslog)
	}
	if cfg.Events.JSON != "" {
		to := out
		if cfg.Events.JSON != "-" {
			if to, err = set.file(cfg.Events.JSON, 0o640); err != nil {
				return nil, fmt.Errorf("events: %w", err)
			}
		}
		set.add("json", jsonlog.New(to, jsonOptions(set.bootID)))
	}
	return set, nil
}

// historyFault says what keeps the history from being written, as PortSentry 2
// does, too.
func historyFault(path string, err error) error {
	return conf.Fault{
		Place:    conf.Place{Key: "history"},
		Text:     err.Error(),
		Upstream: "Unable to open history file for writing " + path + ": " + reason(err),
		Err:      err,
	}
}

// lineForm returns the form of lines that cfg asks for.
func lineForm(cfg conf.Config) portsentrylog.Form {
	if cfg.Log.Format == conf.LinesPortSentry1 {
		return logline.PortSentry1{}.AppendLines
	}
	return logline.PortSentry2{}.AppendLines
}

// newNaming returns what finds out the names of sources, or nil.
func newNaming(cfg conf.Config) *names.Stage {
	if !cfg.Log.Resolve {
		return nil
	}
	return names.New(names.Options{Within: cfg.Log.ResolveWithin})
}

func newHistory(format conf.HistoryFormat, file *logfile.File) outputs.Output {
	if format == conf.HistoryPortSentry1 {
		return portsentrylog.NewHistory1(file, time.Local)
	}
	return portsentrylog.NewHistory(file, time.Local)
}

func jsonOptions(bootID string) jsonlog.Options {
	host, _ := os.Hostname() // without a name the field is left out
	return jsonlog.Options{BootID: bootID, Hostname: host, Version: version.String()}
}

func (s *outputSet) add(name string, o outputs.Output) {
	s.named = append(s.named, outputs.Named{Name: name, Output: o})
}

// addLimited adds an output of lines or records, of as many as cfg allows.
func (s *outputSet) addLimited(cfg conf.Config, name string, o outputs.Output) {
	if n := cfg.Log.PerSecond; n > 0 {
		o = &limited{Output: o, perSecond: n, leftOut: &s.leftOut}
	}
	s.add(name, o)
}

func (s *outputSet) file(path string, mode os.FileMode) (*logfile.File, error) {
	f := logfile.New(path, mode)
	s.closers = append(s.closers, f)
	err := f.Open()
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = nil // the dispatcher reports it as long as it lasts
	}
	return f, err
}

// close writes what the outputs still hold and closes them.
func (s *outputSet) close() error {
	var errs []error
	for _, c := range s.closers {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
