package main

import (
	"context"
	"fmt"
	"os"
	"reflect"
	"slices"
	"time"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/parsers/conf"
)

// lookInterval is how often ignore files are looked at for changes, and banned
// sources written down that could not be before.
const lookInterval = time.Second

// reloadOn reads the configuration again on every signal, and the ignore files
// after every change, as administrators of PortSentry expect.
func (d *daemon) reloadOn(ctx context.Context, signals <-chan os.Signal) error {
	look := time.NewTicker(lookInterval)
	defer look.Stop()
	for {
		select {
		case <-look.C:
			d.followIgnoreFiles()
			d.flushBlocked()
		case <-signals:
			if d.ignoreHangup {
				continue
			}
			if err := d.reload(); err != nil {
				d.log.WithError(err).Error("configuration not reloaded, the old one stays in force")
				continue
			}
			d.log.Info("configuration reloaded")
			d.tell(detector.ConfigReloaded)
		case <-ctx.Done():
			return nil
		}
	}
}

// followIgnoreFiles puts changed ignore files in force.
func (d *daemon) followIgnoreFiles() {
	now := filesOf(d.config.Detect.Ignore)
	if now.same(d.ignoreFiles) {
		return
	}
	d.ignoreFiles = now // so that a faulty file is told of once
	policy, err := d.newPolicy(d.config)
	if err != nil {
		d.log.WithError(err).Error("ignore files not read again, what they said before stays in force")
		return
	}
	d.engine.SetPolicy(policy)
	d.log.WithField("prefixes", policy.Ignore.Len()).Info("ignore files read again")
}

// files are the states of some files; a nil one is not there.
type files []os.FileInfo

func filesOf(paths []string) files {
	var fs files
	for _, path := range paths {
		info, _ := os.Stat(path) // whatever is wrong, reading the file tells
		fs = append(fs, info)
	}
	return fs
}

func (fs files) same(as files) bool {
	return slices.EqualFunc(fs, as, func(a, b os.FileInfo) bool {
		if a == nil || b == nil {
			return a == nil && b == nil
		}
		return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
	})
}

// reload puts a changed configuration in force, or changes nothing.
func (d *daemon) reload() error {
	cfg, err := d.load()
	if err != nil {
		return err
	}
	if cfg.Mode != d.config.Mode {
		return fmt.Errorf("mode %q instead of %q takes a restart", cfg.Mode, d.config.Mode)
	}
	differs := d.keepWhatIsOpen(&cfg)
	ignoreFiles := filesOf(cfg.Detect.Ignore) // before they are read, to miss no change
	policy, err := d.newPolicy(cfg)
	if err != nil {
		return err
	}
	if d.socket != nil {
		if err := d.socket.SetPorts(cfg.Detect.TCPPorts, cfg.Detect.UDPPorts); err != nil {
			return err
		}
	}
	d.engine.SetPolicy(policy)
	if d.traps != nil && d.trapsDiffer(cfg) {
		d.log.Warn("changed ports of traps and a changed banner take effect at the next start")
	}
	if differs {
		d.log.Warn("changed interfaces, outputs and bans take effect at the next start")
	}
	d.config, d.ignoreFiles = cfg, ignoreFiles
	return nil
}

// keepWhatIsOpen has cfg keep what only a start puts in force, and reports
// whether that makes a difference.
func (d *daemon) keepWhatIsOpen(cfg *conf.Config) bool {
	wanted := *cfg
	cfg.Interfaces, cfg.Detect.Broadcasts = d.config.Interfaces, d.config.Detect.Broadcasts
	cfg.State, cfg.Control, cfg.OutputDirs = d.config.State, d.config.Control, d.config.OutputDirs
	cfg.Ban, cfg.Log, cfg.Events, cfg.Outputs = d.config.Ban, d.config.Log, d.config.Events, d.config.Outputs
	return !reflect.DeepEqual(*cfg, wanted)
}

// trapsDiffer reports whether cfg asks for other traps than d opened. They are
// opened at the start only, with privileges that may be gone.
func (d *daemon) trapsDiffer(cfg conf.Config) bool {
	tcp, udp := cfg.Opened()
	return tcp.String() != d.opened.TCP.String() || udp.String() != d.opened.UDP.String() ||
		cfg.Trap.Banner != string(d.opened.Banner)
}
