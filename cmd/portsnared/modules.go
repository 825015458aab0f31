package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/version"
	"github.com/portsnare/portsnare/outputs"
)

// queueBytes bounds the events that wait on the disk for one module.
const queueBytes = 64 << 20

// runtimeDir is where modules listen for the daemon. What a killed daemon leaves
// there goes with the next boot.
const runtimeDir = "/run/portsnare"

// A runningModule is an output module with the events that wait for it.
type runningModule struct {
	name   string
	module *outputs.Module
	spool  *outputs.Spool
}

// openModules makes the modules of the configuration known to the enforcement and
// to the outputs, without starting any. PortSentry has none.
func (d *daemon) openModules(e *outputs.Enforcement) error {
	if !d.native {
		return nil
	}
	for _, name := range d.config.Modules() {
		if err := d.openModule(name, e); err != nil {
			return fmt.Errorf("output.%s: %w", name, err)
		}
	}
	return nil
}

func (d *daemon) openModule(name string, e *outputs.Enforcement) error {
	if err := d.openState(); err != nil {
		return err
	}
	config, err := d.moduleConfig(name)
	if err != nil {
		return err
	}
	queue, err := d.state.Queue(name, queueBytes)
	if err != nil {
		return err
	}
	log := d.log.WithField("output", name)
	m := runningModule{name: name, module: outputs.NewModule(config, log)}
	m.spool = outputs.NewSpool(d.outputs.bootID, queue, m.module, log)
	d.modules = append(d.modules, m)
	d.outputs.add(name, m.spool)
	if d.config.Ban.File != "" {
		return nil // what PortSentry's file keeps, a module could not be told again
	}
	e.Outputs = append(e.Outputs, outputs.NamedBans{Name: name, Output: m.module})
	return nil
}

// moduleConfig returns how a module is to be run.
func (d *daemon) moduleConfig(name string) (outputs.ModuleConfig, error) {
	places, err := outputs.DefaultPlaces(outputs.Bundled()...)
	if err != nil {
		return outputs.ModuleConfig{}, err
	}
	if dirs := d.config.OutputDirs; len(dirs) > 0 {
		places.Dirs = dirs
	}
	stateDir := filepath.Join(filepath.Dir(d.config.State), "modules", name)
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return outputs.ModuleConfig{}, err
	}
	socketDir := runtimeDir
	if os.MkdirAll(socketDir, 0o755) != nil || unix.Access(socketDir, unix.W_OK) != nil {
		socketDir = "" // not root: the temporary directory will do
	}
	block := d.config.Outputs[name]
	return outputs.ModuleConfig{
		Name: name, Places: places, SHA256: block.SHA256, Settings: block.Settings, Required: block.Required,
		Capabilities: block.CapabilityNumbers(),
		Bans:         func() []detector.Ban { return d.dispatcher.Bans() },
		BootID:       d.outputs.bootID, HostVersion: version.String(), StateDir: stateDir, SocketDir: socketDir,
	}, nil
}

// runModules starts the modules. They outlive the dispatcher: rest has them take
// what it has left, and ends them. A module that is required and cannot start is
// told to failed.
func (d *daemon) runModules(failed func(error)) (rest func()) {
	forwarding, stopSpools := context.WithCancel(context.Background())
	living, stopModules := context.WithCancel(context.Background())
	var spools, modules sync.WaitGroup
	for _, m := range d.modules {
		spools.Go(func() {
			select { // what is not there yet fails no delivery
			case <-m.module.Settled():
			case <-forwarding.Done():
			}
			m.spool.Run(forwarding)
		})
		modules.Go(func() {
			if err := m.module.Run(living); err != nil {
				failed(err)
			}
		})
	}
	return func() {
		stopSpools()
		spools.Wait()
		stopModules()
		modules.Wait()
	}
}
